"""The claims, their verdicts, and the ledger of a reproduction.

Verdicts are computed from records alone, with thresholds that are defined in the code;
docs/claims.md lists them.  Only NumPy and SciPy are imported.

>>> [claim.id for claim in CLAIMS][:3]
['B1', 'B2', 'B3']
>>> make_ledger("no/such/folder")
Traceback (most recent call last):
...
tf_lrtraj.records.RecordError: no/such/folder is not a folder, so it holds no records.
"""

from tf_lrtraj.claims.claims_page import claims_page
from tf_lrtraj.claims.ledger import (
    CLAIMS,
    LEDGER,
    Study,
    chosen,
    judge,
    ledger_bytes,
    ledger_text,
    make_ledger,
    write_ledger,
)
from tf_lrtraj.claims.records_reader import Measured, NotMeasured, Probed, Records
from tf_lrtraj.claims.verdicts import VERDICTS, Claim, Judgement
from tf_lrtraj.claims.verdicts_page import verdicts_page

__all__ = [
    "CLAIMS",
    "LEDGER",
    "VERDICTS",
    "Claim",
    "Judgement",
    "Measured",
    "NotMeasured",
    "Probed",
    "Records",
    "Study",
    "chosen",
    "claims_page",
    "judge",
    "ledger_bytes",
    "ledger_text",
    "make_ledger",
    "verdicts_page",
    "write_ledger",
]
