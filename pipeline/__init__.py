"""Everything around the method: Ray, storage, configuration, stages, and what people see."""

import os

# Threads of torch that wait for each other spin by default. On a machine with other work that makes
# a training two to four times slower, so they sleep. It counts if it is said before torch comes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
