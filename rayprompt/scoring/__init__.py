"""The scoring pool: LM actors pinned to devices, a router in front of them. Needs Ray; torch only in the actors."""
