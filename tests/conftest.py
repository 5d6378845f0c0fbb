"""One thread for every test, and for the processes that tests start."""

import os

# With several, oneDNN adds up in the order in which its threads finish: the gradient of AlexNet's last convolutions on
# the tests' small maps then differs between two runs in its last bits. Set before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"
