"""From the public downloads to NIfTI volumes, datalists with the published splits, and a record of how."""
