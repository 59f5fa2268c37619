"""Image-text pairs for training, from files to batches.

    source ──open_pairs──> Pairs ──Samples (order, augment, tokenizer)──> Batches ──> training

Everything is random access without state: `pairs[i]`, `order(n, seed, epoch)[i]`, `batches.piece(k)`. So a run goes on
from any step, with any number of workers, as if it had never stopped.

| file | owns |
|---|---|
| `pairs` | what a source of pairs is; several as one |
| `sources` | from a name to pairs |
| `tables` + `columns`, `folders`, `parquet`, `shards` + `tar_index` | the kinds of source |
| `labels` | class names put into templates |
| `reading` | reading files that nobody has vouched for |
| `shuffle` | the order of an epoch, computed and not stored |
| `augment` | decoding, cropping, changing an image |
| `samples`, `batch` | positions to batches; what a batch and the account of bad pairs are |
| `loader` | batches for a rank, with workers |
| `preflight` | what there is to know before the first step |
"""

from sightline.data.augment import Augment
from sightline.data.batch import Batch, Failure, Report
from sightline.data.loader import Batches
from sightline.data.pairs import Concat, Pair, Pairs
from sightline.data.preflight import Preflight, preflight
from sightline.data.shuffle import order
from sightline.data.sources import open_pairs

__all__ = [
    "Augment",
    "Batch",
    "Batches",
    "Concat",
    "Failure",
    "Pair",
    "Pairs",
    "Preflight",
    "Report",
    "open_pairs",
    "order",
    "preflight",
]
