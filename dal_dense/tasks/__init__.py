"""Task adapters: one framework each behind the `Task` protocol of `tasks/base.py`."""
