"""Training. Importing any of it prepares megatron-core for this machine.

That has to come before megatron-core is imported, so that every file below can import it at its
top.
"""

from loopcoder.parallel import mcore

mcore.prepare()
