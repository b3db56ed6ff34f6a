"""The packing room: how two MONAI bundles come out of one workshop.

A bundle is the ``<name>`` slice of ``configs/``, ``docs/`` and ``models/`` with one task's values, plus all of
``scripts/``, ``LICENSE`` and ``logging.conf``. Packing copies these into ``glua_<task>_<name>/`` and writes two things:
the task's values into the YAML files' own top-level keys, and its labels and sizes into ``metadata.json``. Nothing
else is edited, so a packed folder runs from anywhere and in the tools that read a single file per role. Where the
weights have an address, ``large_files.yml`` is added.

``label_app.py`` is for MONAI Label alone: it is copied beside packed bundles, and the server imports it, nothing here.

``python -m bundle pack segmentation --task phantom_mr2ct --out dist`` packs one.
"""
