"""The program of killed.py with its data from the disk. Usage: python -m tests.training.killed_on_disk FOLDER."""

import json
import sys
from functools import partial
from pathlib import Path

from tests.quick import quick_train
from tests.training import killed

if __name__ == "__main__":
    killed.quick_train = partial(quick_train, memory=4e-5)
    print(json.dumps(killed.main(Path(sys.argv[1]))))
