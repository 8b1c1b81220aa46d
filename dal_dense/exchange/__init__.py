"""Files that go to annotators and come back: NIfTI for volumes, COCO and PNG for frames.

Only here and in `tasks/` are axis orders and affines converted. `batch` writes a round's folder,
`returns` reads whatever came back; the sidecar `query.json` ties the two together.
"""
