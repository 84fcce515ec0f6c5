"""Training data: a JSONL file → records → encoded examples → batches. No torch."""

from compiler.data.batches import Batch, batch_count, batches
from compiler.data.encode import Encoded, encode
from compiler.data.example import IGNORED, Example
from compiler.data.pack import pack
from compiler.data.read import read
from compiler.data.record import Chat, Completion, Labelled, Record, Text
from compiler.data.split import split

__all__ = [
    "IGNORED",
    "Batch",
    "Chat",
    "Completion",
    "Encoded",
    "Example",
    "Labelled",
    "Record",
    "Text",
    "batch_count",
    "batches",
    "encode",
    "pack",
    "read",
    "split",
]
