"""The drawn world of the embedded model: which portraits there are, how they are drawn, and what a picture shows."""
