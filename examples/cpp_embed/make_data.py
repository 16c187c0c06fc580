"""Write the 1797 scanned digits that scikit-learn ships as CSV: the label, then 64 pixels."""

import sys
from pathlib import Path

from sklearn.datasets import load_digits

digits = load_digits()
rows = (
    ",".join(str(int(number)) for number in (label, *pixels))
    for label, pixels in zip(digits.target, digits.data, strict=True)
)
Path(sys.argv[1]).write_text("".join(f"{row}\n" for row in rows), encoding="ascii")
