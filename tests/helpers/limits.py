"""Time limits. No test depends on how fast the machine is: it waits for what must happen."""

# Seconds after which a test gives up on something that must happen. Far more than any needs.
HANG_LIMIT = 1800
# Seconds for what must not happen by itself before the test has ended.
NEVER = 10**6
