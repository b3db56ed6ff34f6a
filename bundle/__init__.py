"""Packing and export of the two MONAI bundles, and the programs that serve a packed one.

A bundle is one stage's slice of ``configs/``, ``docs/`` and ``models/`` with one task's values, the modules of
``scripts/`` that it reaches, ``LICENSE`` and ``logging.conf``. Its configs are JSON, one file per role, because
``monai.bundle.load``, MONAI's federated client, Slicer and MONAI Deploy read nothing else. It runs from any folder.

``deploy_app.py`` and ``label_*.py`` run inside MONAI Deploy and MONAI Label; nothing here imports them.

``python -m bundle pack segmentation --task phantom_mr2ct --out dist`` packs one.
"""
