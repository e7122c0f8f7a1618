"""``python -m resnet_bench`` is the command ``resnet-bench``."""

from resnet_bench.cli.app import main

if __name__ == "__main__":
    main()
