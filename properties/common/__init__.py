"""What all of this room uses: random numbers, files, torch's switches, guarded memory."""
