"""Generated programs are called where they can do no harm, and judged where they cannot reach.

Of the processes of one check, each starts the next one:

    loopcoder   `checks.py`      asks, and kills what takes too long
    guard       `guard.py`       enters namespaces of its own, and waits
    judge       `judge.py`       first process of a PID namespace without network or files: runs the
                                 test, and asks the candidate for each value
    candidate   `candidate.py`   first process of a PID namespace below it, without any privilege:
                                 runs the generated program

A candidate ends with everything that it started when the judge does, and sees neither the test nor
a process besides its own. A test gets plain values from it, never objects with methods, and the
verdict is the judge's. All but `checks.py` run on the standard library alone.
"""
