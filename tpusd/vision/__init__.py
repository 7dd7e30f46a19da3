"""What CLIP sees in pictures: preprocessing, embeddings of pictures and texts, and the safety checker.

Knows nothing of runs.
"""
