from framelift.cli import main

raise SystemExit(main())
