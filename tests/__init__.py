"""A package, so that no other `tests` on the path (Detectron2 has one) is taken for it."""
