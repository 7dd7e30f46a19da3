import sys

from tpusd.preflight import main

sys.exit(main())
