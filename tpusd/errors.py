"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A wrong value, file or environment, told in one line: what, the rule, what to do.

    Entry points print it as `tpusd: <line>` on stderr and exit with status 2, without a traceback.
    """
