"""``python -m tgate_batch COMMAND ...``"""

from tgate_batch.cli import main

main()
