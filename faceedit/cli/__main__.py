"""``python -m faceedit.cli``: the command, where the installed script is not on the path."""

from faceedit.cli import main

raise SystemExit(main())
