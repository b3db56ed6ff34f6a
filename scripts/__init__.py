"""GLUA: global-local union alignment for cross-modality segmentation, the Python shared by both bundles."""
