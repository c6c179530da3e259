"""What the platform needs: MXNet on today's Pythons, devices, signals, atomic files, progress."""
