import sys

from pyclassify.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
