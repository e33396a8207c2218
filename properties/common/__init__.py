"""What every package of properties uses: random numbers, files, torch's switches, guarded memory."""
