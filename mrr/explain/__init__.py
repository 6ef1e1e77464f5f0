"""Why a page scored as it did: separate traced passes, never inside `rank` and never timed."""
