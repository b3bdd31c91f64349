from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_F32: _ClassVar[Encoding]
    ENCODING_F16: _ClassVar[Encoding]
    ENCODING_Q8_0: _ClassVar[Encoding]
    ENCODING_Q8_0_OUTLIERS: _ClassVar[Encoding]
ENCODING_UNSPECIFIED: Encoding
ENCODING_F32: Encoding
ENCODING_F16: Encoding
ENCODING_Q8_0: Encoding
ENCODING_Q8_0_OUTLIERS: Encoding

class ModelSpec(_message.Message):
    __slots__ = ("architecture", "name", "hidden_size", "vocab_size", "context_length", "layers", "output_norm", "embedding_scale", "logit_scale", "logit_softcap", "padding_rows", "per_layer_embedding")
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_NORM_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_SCALE_FIELD_NUMBER: _ClassVar[int]
    LOGIT_SCALE_FIELD_NUMBER: _ClassVar[int]
    LOGIT_SOFTCAP_FIELD_NUMBER: _ClassVar[int]
    PADDING_ROWS_FIELD_NUMBER: _ClassVar[int]
    PER_LAYER_EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    architecture: str
    name: str
    hidden_size: int
    vocab_size: int
    context_length: int
    layers: _containers.RepeatedCompositeFieldContainer[LayerSpec]
    output_norm: Norm
    embedding_scale: float
    logit_scale: float
    logit_softcap: float
    padding_rows: int
    per_layer_embedding: PerLayerEmbedding
    def __init__(self, architecture: _Optional[str] = ..., name: _Optional[str] = ..., hidden_size: _Optional[int] = ..., vocab_size: _Optional[int] = ..., context_length: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[LayerSpec, _Mapping]]] = ..., output_norm: _Optional[_Union[Norm, _Mapping]] = ..., embedding_scale: _Optional[float] = ..., logit_scale: _Optional[float] = ..., logit_softcap: _Optional[float] = ..., padding_rows: _Optional[int] = ..., per_layer_embedding: _Optional[_Union[PerLayerEmbedding, _Mapping]] = ...) -> None: ...

class PerLayerEmbedding(_message.Message):
    __slots__ = ("width", "norm", "embedding_scale", "scale")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_SCALE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    width: int
    norm: Norm
    embedding_scale: float
    scale: float
    def __init__(self, width: _Optional[int] = ..., norm: _Optional[_Union[Norm, _Mapping]] = ..., embedding_scale: _Optional[float] = ..., scale: _Optional[float] = ...) -> None: ...

class PerLayerInput(_message.Message):
    __slots__ = ("width", "activation", "post_norm")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    POST_NORM_FIELD_NUMBER: _ClassVar[int]
    width: int
    activation: Activation
    post_norm: Norm
    def __init__(self, width: _Optional[int] = ..., activation: _Optional[_Union[Activation, _Mapping]] = ..., post_norm: _Optional[_Union[Norm, _Mapping]] = ...) -> None: ...

class LayerSpec(_message.Message):
    __slots__ = ("attention_norm", "self_attention", "latent_attention", "linear_attention", "attention_post_norm", "feed_forward_norm", "dense_feed_forward", "expert_feed_forward", "feed_forward_post_norm", "residual_scale", "per_layer_input", "output_scale")
    ATTENTION_NORM_FIELD_NUMBER: _ClassVar[int]
    SELF_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    LATENT_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    LINEAR_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_POST_NORM_FIELD_NUMBER: _ClassVar[int]
    FEED_FORWARD_NORM_FIELD_NUMBER: _ClassVar[int]
    DENSE_FEED_FORWARD_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FEED_FORWARD_FIELD_NUMBER: _ClassVar[int]
    FEED_FORWARD_POST_NORM_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_SCALE_FIELD_NUMBER: _ClassVar[int]
    PER_LAYER_INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SCALE_FIELD_NUMBER: _ClassVar[int]
    attention_norm: Norm
    self_attention: SelfAttention
    latent_attention: LatentAttention
    linear_attention: LinearAttention
    attention_post_norm: Norm
    feed_forward_norm: Norm
    dense_feed_forward: DenseFeedForward
    expert_feed_forward: ExpertFeedForward
    feed_forward_post_norm: Norm
    residual_scale: float
    per_layer_input: PerLayerInput
    output_scale: bool
    def __init__(self, attention_norm: _Optional[_Union[Norm, _Mapping]] = ..., self_attention: _Optional[_Union[SelfAttention, _Mapping]] = ..., latent_attention: _Optional[_Union[LatentAttention, _Mapping]] = ..., linear_attention: _Optional[_Union[LinearAttention, _Mapping]] = ..., attention_post_norm: _Optional[_Union[Norm, _Mapping]] = ..., feed_forward_norm: _Optional[_Union[Norm, _Mapping]] = ..., dense_feed_forward: _Optional[_Union[DenseFeedForward, _Mapping]] = ..., expert_feed_forward: _Optional[_Union[ExpertFeedForward, _Mapping]] = ..., feed_forward_post_norm: _Optional[_Union[Norm, _Mapping]] = ..., residual_scale: _Optional[float] = ..., per_layer_input: _Optional[_Union[PerLayerInput, _Mapping]] = ..., output_scale: bool = ...) -> None: ...

class Norm(_message.Message):
    __slots__ = ("kind", "eps", "offset_by_one", "weighted")
    KIND_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BY_ONE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    eps: float
    offset_by_one: bool
    weighted: bool
    def __init__(self, kind: _Optional[str] = ..., eps: _Optional[float] = ..., offset_by_one: bool = ..., weighted: bool = ...) -> None: ...

class Rope(_message.Message):
    __slots__ = ("theta", "dim", "interleaved", "freq_factors", "magnitude", "long_freq_factors", "original_context")
    THETA_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    INTERLEAVED_FIELD_NUMBER: _ClassVar[int]
    FREQ_FACTORS_FIELD_NUMBER: _ClassVar[int]
    MAGNITUDE_FIELD_NUMBER: _ClassVar[int]
    LONG_FREQ_FACTORS_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    theta: float
    dim: int
    interleaved: bool
    freq_factors: _containers.RepeatedScalarFieldContainer[float]
    magnitude: float
    long_freq_factors: _containers.RepeatedScalarFieldContainer[float]
    original_context: int
    def __init__(self, theta: _Optional[float] = ..., dim: _Optional[int] = ..., interleaved: bool = ..., freq_factors: _Optional[_Iterable[float]] = ..., magnitude: _Optional[float] = ..., long_freq_factors: _Optional[_Iterable[float]] = ..., original_context: _Optional[int] = ...) -> None: ...

class SelfAttention(_message.Message):
    __slots__ = ("num_heads", "num_kv_heads", "key_dim", "value_dim", "scale", "rope", "window", "q_norm", "k_norm", "q_bias", "k_bias", "v_bias", "output_bias", "sinks", "softcap", "output_gate", "v_norm", "norm_spans_heads", "keys_of")
    NUM_HEADS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    KEY_DIM_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIM_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    ROPE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    Q_NORM_FIELD_NUMBER: _ClassVar[int]
    K_NORM_FIELD_NUMBER: _ClassVar[int]
    Q_BIAS_FIELD_NUMBER: _ClassVar[int]
    K_BIAS_FIELD_NUMBER: _ClassVar[int]
    V_BIAS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BIAS_FIELD_NUMBER: _ClassVar[int]
    SINKS_FIELD_NUMBER: _ClassVar[int]
    SOFTCAP_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_GATE_FIELD_NUMBER: _ClassVar[int]
    V_NORM_FIELD_NUMBER: _ClassVar[int]
    NORM_SPANS_HEADS_FIELD_NUMBER: _ClassVar[int]
    KEYS_OF_FIELD_NUMBER: _ClassVar[int]
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    rope: Rope
    window: int
    q_norm: Norm
    k_norm: Norm
    q_bias: bool
    k_bias: bool
    v_bias: bool
    output_bias: bool
    sinks: bool
    softcap: float
    output_gate: bool
    v_norm: Norm
    norm_spans_heads: bool
    keys_of: int
    def __init__(self, num_heads: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., key_dim: _Optional[int] = ..., value_dim: _Optional[int] = ..., scale: _Optional[float] = ..., rope: _Optional[_Union[Rope, _Mapping]] = ..., window: _Optional[int] = ..., q_norm: _Optional[_Union[Norm, _Mapping]] = ..., k_norm: _Optional[_Union[Norm, _Mapping]] = ..., q_bias: bool = ..., k_bias: bool = ..., v_bias: bool = ..., output_bias: bool = ..., sinks: bool = ..., softcap: _Optional[float] = ..., output_gate: bool = ..., v_norm: _Optional[_Union[Norm, _Mapping]] = ..., norm_spans_heads: bool = ..., keys_of: _Optional[int] = ...) -> None: ...

class LatentAttention(_message.Message):
    __slots__ = ("num_heads", "query_rank", "kv_rank", "key_dim", "value_dim", "scale", "rope", "latent_norm", "bias")
    NUM_HEADS_FIELD_NUMBER: _ClassVar[int]
    QUERY_RANK_FIELD_NUMBER: _ClassVar[int]
    KV_RANK_FIELD_NUMBER: _ClassVar[int]
    KEY_DIM_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIM_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    ROPE_FIELD_NUMBER: _ClassVar[int]
    LATENT_NORM_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    num_heads: int
    query_rank: int
    kv_rank: int
    key_dim: int
    value_dim: int
    scale: float
    rope: Rope
    latent_norm: Norm
    bias: bool
    def __init__(self, num_heads: _Optional[int] = ..., query_rank: _Optional[int] = ..., kv_rank: _Optional[int] = ..., key_dim: _Optional[int] = ..., value_dim: _Optional[int] = ..., scale: _Optional[float] = ..., rope: _Optional[_Union[Rope, _Mapping]] = ..., latent_norm: _Optional[_Union[Norm, _Mapping]] = ..., bias: bool = ...) -> None: ...

class LinearAttention(_message.Message):
    __slots__ = ("num_key_heads", "num_value_heads", "key_dim", "value_dim", "conv_width", "output_norm", "tiled")
    NUM_KEY_HEADS_FIELD_NUMBER: _ClassVar[int]
    NUM_VALUE_HEADS_FIELD_NUMBER: _ClassVar[int]
    KEY_DIM_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIM_FIELD_NUMBER: _ClassVar[int]
    CONV_WIDTH_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_NORM_FIELD_NUMBER: _ClassVar[int]
    TILED_FIELD_NUMBER: _ClassVar[int]
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    output_norm: Norm
    tiled: bool
    def __init__(self, num_key_heads: _Optional[int] = ..., num_value_heads: _Optional[int] = ..., key_dim: _Optional[int] = ..., value_dim: _Optional[int] = ..., conv_width: _Optional[int] = ..., output_norm: _Optional[_Union[Norm, _Mapping]] = ..., tiled: bool = ...) -> None: ...

class Activation(_message.Message):
    __slots__ = ("kind", "alpha", "limit")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    alpha: float
    limit: float
    def __init__(self, kind: _Optional[str] = ..., alpha: _Optional[float] = ..., limit: _Optional[float] = ...) -> None: ...

class DenseFeedForward(_message.Message):
    __slots__ = ("intermediate_size", "activation", "bias")
    INTERMEDIATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    intermediate_size: int
    activation: Activation
    bias: bool
    def __init__(self, intermediate_size: _Optional[int] = ..., activation: _Optional[_Union[Activation, _Mapping]] = ..., bias: bool = ...) -> None: ...

class ExpertFeedForward(_message.Message):
    __slots__ = ("num_experts", "num_experts_used", "intermediate_size", "activation", "router", "shared_intermediate_size", "shared_gate", "bias")
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_USED_FIELD_NUMBER: _ClassVar[int]
    INTERMEDIATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    SHARED_INTERMEDIATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    SHARED_GATE_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    num_experts: int
    num_experts_used: int
    intermediate_size: int
    activation: Activation
    router: Router
    shared_intermediate_size: int
    shared_gate: bool
    bias: bool
    def __init__(self, num_experts: _Optional[int] = ..., num_experts_used: _Optional[int] = ..., intermediate_size: _Optional[int] = ..., activation: _Optional[_Union[Activation, _Mapping]] = ..., router: _Optional[_Union[Router, _Mapping]] = ..., shared_intermediate_size: _Optional[int] = ..., shared_gate: bool = ..., bias: bool = ...) -> None: ...

class Router(_message.Message):
    __slots__ = ("kind", "normalised", "scale", "bias", "selection_bias", "num_groups", "num_groups_used", "group_best")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NORMALISED_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    SELECTION_BIAS_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUPS_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUPS_USED_FIELD_NUMBER: _ClassVar[int]
    GROUP_BEST_FIELD_NUMBER: _ClassVar[int]
    kind: str
    normalised: bool
    scale: float
    bias: bool
    selection_bias: bool
    num_groups: int
    num_groups_used: int
    group_best: int
    def __init__(self, kind: _Optional[str] = ..., normalised: bool = ..., scale: _Optional[float] = ..., bias: bool = ..., selection_bias: bool = ..., num_groups: _Optional[int] = ..., num_groups_used: _Optional[int] = ..., group_best: _Optional[int] = ...) -> None: ...

class TensorInfo(_message.Message):
    __slots__ = ("name", "role", "block_format", "shape", "pieces", "transforms", "quantized_to")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FORMAT_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZED_TO_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    block_format: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    pieces: _containers.RepeatedCompositeFieldContainer[TensorPiece]
    transforms: _containers.RepeatedScalarFieldContainer[str]
    quantized_to: str
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., block_format: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., pieces: _Optional[_Iterable[_Union[TensorPiece, _Mapping]]] = ..., transforms: _Optional[_Iterable[str]] = ..., quantized_to: _Optional[str] = ...) -> None: ...

class TensorPiece(_message.Message):
    __slots__ = ("file_index", "offset_bytes", "size_bytes")
    FILE_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    file_index: int
    offset_bytes: int
    size_bytes: int
    def __init__(self, file_index: _Optional[int] = ..., offset_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Unit(_message.Message):
    __slots__ = ("index", "tensors", "size_bytes", "digest")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    index: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    size_bytes: int
    digest: bytes
    def __init__(self, index: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., size_bytes: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("spec", "units", "files", "model_digest")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    spec: ModelSpec
    units: _containers.RepeatedCompositeFieldContainer[Unit]
    files: _containers.RepeatedCompositeFieldContainer[ModelFile]
    model_digest: bytes
    def __init__(self, spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., units: _Optional[_Iterable[_Union[Unit, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ..., model_digest: _Optional[bytes] = ...) -> None: ...
