import sys

from tpusd.verify import main

sys.exit(main())
