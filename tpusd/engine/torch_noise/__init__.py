"""The normal numbers that PyTorch draws for a seed, without PyTorch. NumPy; knows nothing of images."""
