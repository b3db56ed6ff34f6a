"""The ablation comparison: methods, seeds and translators under one protocol, from commands to tables and figures."""
