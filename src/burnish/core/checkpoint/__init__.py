"""Checkpoints: a Hugging Face directory plus `burnish.json`, its lineage.

A checkpoint holds config.json, safetensors, tokenizer files, a model card and the lineage. Weights are only ever read
from safetensors; nothing is unpickled and no remote code runs. A save goes to a temporary sibling, is fsynced and
renamed, so a killed process never leaves a directory that looks finished.

    model = load("path/or/hub-id")       # nothing is read until .module or .tokenizer is asked for
    model.save("out")
"""

from burnish.core.checkpoint.belonging import check_made_on, read_from
from burnish.core.checkpoint.deferred import DeferredModel
from burnish.core.checkpoint.durable import (
    cause_of,
    check_place,
    fsync,
    publish,
    remedy,
    remove_leftovers,
    remove_leftovers_inside,
    replacing,
    saving,
    staging_directory,
    write_atomically,
)
from burnish.core.checkpoint.identity import tensor_digest, tensors_digest, text_digest, tokenizer_digest
from burnish.core.checkpoint.lineage import (
    CARD_FILE,
    LINEAGE_FILE,
    LINEAGE_FORMAT,
    Lineage,
    check_target,
    content_files,
    content_hash,
    hash_directory,
    hash_file,
    library_versions,
    model_card,
)
from burnish.core.checkpoint.model import Model, cast, compute_dtype, load, move, pick_device, working_copy
from burnish.core.checkpoint.network import without_memory
from burnish.core.checkpoint.packed_embedding import weight_of_embedding
from burnish.core.checkpoint.passed_over import check_fits
from burnish.core.checkpoint.reading import (
    UNSAFE_SUFFIXES,
    config_from,
    download,
    kind_of,
    load_config,
    quiet_transformers,
    read_config,
    read_safetensors_header,
    remarks,
    resolve,
    weight_files,
    weights_of,
)
from burnish.core.checkpoint.shards import MAX_SHARD_BYTES, shards_of, write_config, write_index
from burnish.core.checkpoint.sizes import plan_checkpoint, plan_config
from burnish.core.checkpoint.skeleton import allocate, hollow, unfilled, without_weights
from burnish.core.checkpoint.vocabulary import common_vocabulary

__all__ = [
    "CARD_FILE",
    "LINEAGE_FILE",
    "LINEAGE_FORMAT",
    "MAX_SHARD_BYTES",
    "UNSAFE_SUFFIXES",
    "DeferredModel",
    "Lineage",
    "Model",
    "allocate",
    "cast",
    "cause_of",
    "check_fits",
    "check_made_on",
    "check_place",
    "check_target",
    "common_vocabulary",
    "compute_dtype",
    "config_from",
    "content_files",
    "content_hash",
    "download",
    "fsync",
    "hash_directory",
    "hash_file",
    "hollow",
    "kind_of",
    "library_versions",
    "load",
    "load_config",
    "model_card",
    "move",
    "pick_device",
    "plan_checkpoint",
    "plan_config",
    "publish",
    "quiet_transformers",
    "read_config",
    "read_from",
    "read_safetensors_header",
    "remarks",
    "remedy",
    "remove_leftovers",
    "remove_leftovers_inside",
    "replacing",
    "resolve",
    "saving",
    "shards_of",
    "staging_directory",
    "tensor_digest",
    "tensors_digest",
    "text_digest",
    "tokenizer_digest",
    "unfilled",
    "weight_files",
    "weight_of_embedding",
    "weights_of",
    "without_memory",
    "without_weights",
    "working_copy",
    "write_atomically",
    "write_config",
    "write_index",
]
