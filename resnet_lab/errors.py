"""The one exception that means: the input is wrong, and here is what to do."""

import errno

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk says


class UserError(Exception):
    """Bad input. Its message is one line naming the file, row or key, what was seen, and the remedy.

    The command line prints the message alone; any other exception is a defect and shows its traceback.
    """
