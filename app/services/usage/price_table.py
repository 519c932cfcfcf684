"""The list prices that come with this version. A model that is not here has no known price.

`PRICES` and `PRICES_FILE` replace or add models.
"""

from datetime import date
from decimal import Decimal

from app.core.price_list import ModelPrice, PriceList

_CHECKED = date(2026, 11, 22)

PRICES: PriceList = {
    "gpt-6-luna": [ModelPrice(_CHECKED, prompt=Decimal("0.20"), completion=Decimal("1.00"))],
    "gpt-transcribe": [ModelPrice(_CHECKED, speech_in_minute=Decimal("0.0045"))],
}
