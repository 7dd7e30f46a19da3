"""How the embedded model was made: a drawn world, its captions, training and evaluation. No part of the package."""
