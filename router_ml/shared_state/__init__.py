"""What replicas share: places, circuits, sessions and rates (may be lost); files of the state folder (may not)."""
