"""Pieces of documentation and programs, as small as they can be."""

from __future__ import annotations

POD = """\
=head1 NAME

perlfaq4 - Data Manipulation

=head2 How do I strip blanks?

(contributed by brian d foy)

Use C<< s/^\\s+// >>, see L<perlop/"Quotes"> and L<POSIX>. It
is I<fast>:

    for ($string) {
        s/^\\s+//;
    }

    print;

=over 4

=item * It does E<lt>not> hurt.

=back

=head2 Is this one cut?

No, it just stops in the middle of

=head1 AUTHOR
"""

RST = """\
.. _faq:

How do I sort?
--------------

Call :func:`sorted`, or ``list.sort``::

   >>> sorted([2, 1])
   [1, 2]

   >>> sorted("")
   []

See `the manual <https://example.org/sort>`_ and :ref:`the tutorial <tut>`.

* one item
  of two lines
* another one.

A heading
---------

That asks nothing.
"""

MAN = """\
.\\" SPDX-License-Identifier: GPL-2.0-or-later
.TH frob 3 2023-02-05 "Linux man-pages 6.03"
.SH NAME
frob, frobl \\- turn a knob
.SH SYNOPSIS
.nf
.B #include <frob.h>
.PP
.BI "int frob(int " knob );
.fi
.SH RETURN VALUE
On success,
.BR frob ()
returns 0; on error, \\-1, and
.I errno
is set.
.SH EXAMPLES
This turns it:
.PP
.EX
if (frob(3) == \\-1)
    puts("no\\en");
.EE
.SH ERRORS
"""

GIT = """\
git-frob(1)
===========

OPTIONS
-------
-q::
--quiet::
	Print nothing but errors, as 'git-log' does, see
	linkgit:git-log[1].

EXAMPLES
--------
`git frob --all`::

	Turn every knob of the repository.

Turn them back::
+
------------
$ git frob --back   <1>
------------
+
<1> This takes a while.

SEE ALSO
--------
"""

NODE = """\
# Frob

## `frob.turn(knob[, options])`

<!-- YAML
added: v1.0.0
-->

* `knob` {number}

Turns a [knob][]. See [`frob.stop()`][].

```mjs
import frob from 'node:frob';
```

```cjs
const frob = require('node:frob');
```

## `frob.constants`

No function.

[`frob.stop()`]: #stop
[knob]: https://example.org/knob
"""

MODULE = '''\
"""A module."""

import math
from itertools import islice


def halves(number: int, places: int = 2) -> float:
    """Return half of a number, rounded.

    Args:
        number: The number to divide.
        places: How many digits are kept.

    >>> halves(3)
    1.5
    """
    exact = number / 2
    return round(math.fsum([exact]), places)


def copy_file(path: str, target: str | None = None, mode: Literal["fast", "safe"] = "safe") -> bool:
    """Copies a file to another place.

    :param path: File that is copied.
    """
    return _copy(path, target, mode)


def apply(function, table) -> None:
    """Apply a function to a table."""
'''

PROGRAM = '''\
"""Pack a folder."""
import argparse


def main():
    parser = argparse.ArgumentParser(prog="packer", description="Pack a folder into an archive.")
    parser.add_argument("folder", help="folder to pack")
    parser.add_argument("-l", "--level", type=int, default=6, help="compression level (default: 6)")
    parser.add_argument("--format", choices=["tar", "zip"])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--exclude-from", nargs="*", metavar="FILE")
    parser.add_argument("--hook", type=make_hook)
    parser.add_argument("--version", action="version")
'''
