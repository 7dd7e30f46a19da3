"""What differs between families of models: one file a family, behind the interface of base.py."""
