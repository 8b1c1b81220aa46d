"""Deep active learning for dense prediction: which regions should the expert label next?"""

__version__ = "0.1.0"
