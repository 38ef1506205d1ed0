"""Boards: bringing a bundle to one, running it there, and bringing back what was measured.

All goes over the user's own `ssh`, one connection with a request at a time. What is asked for is done by a small
program that goes along with each request (board.py), so that the board needs Python and nothing else.
"""

from penjing.remote.deploy import Place, clean, deploy
from penjing.remote.measure import measure

__all__ = ["Place", "clean", "deploy", "measure"]
