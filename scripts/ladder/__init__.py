"""Many methods and seeds on one task under one protocol, and the report of what they reached."""
