"""`depo demo`: a tiny policy that learns to add, on the CPU in minutes."""
