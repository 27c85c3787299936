"""`python -m pretrain <command>`, also under torchrun and the deepspeed launcher."""

import sys

from pretrain.cli import main

sys.exit(main())
