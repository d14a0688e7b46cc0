"""Convolutions and norms with PyTorch's geometry, on maps that may be padded.

Images of a batch are padded to a shared static size. A zero-padded convolution of the reference
reads zeros right outside its own map, where here a feature may be. So each layer that reads more
than one cell takes `valid_hw` [B, 2], the rows and columns that count, and reads zeros outside
them: padding then changes nothing. `None` means that the whole map counts.
"""

import math
from collections.abc import Callable

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ktn_jax.modeling.compute import PLAIN, Compute, matmul
from ktn_jax.ops import interpolate, winograd
from ktn_jax.ops.channels import add_bias, per_channel

Array = jax.Array
Initializer = Callable[..., Array]

# Kaiming normal with fan-out, as the reference draws convolution weights.
msra_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# fvcore's c2_xavier_fill: Kaiming uniform with a = 1.
xavier_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")

# Channels from which a convolution of its own is fast; groups of fewer are joined.
_CHANNELS_AT_ONCE = 32
# With more channels than these the first convolution is not faster on blocks of pixels.
_FEW_INPUTS, _FEW_FEATURES = 4, 32


def valid_mask(valid_hw: Array, height: int, width: int) -> Array:
    """Marks the cells that count, bool [B, height, width, 1], for `valid_hw` [B, 2]."""
    rows = jnp.arange(height)[None, :, None, None] < valid_hw[:, 0][:, None, None, None]
    columns = jnp.arange(width)[None, None, :, None] < valid_hw[:, 1][:, None, None, None]
    return rows & columns


def zero_invalid(x: Array, valid_hw: Array | None) -> Array:
    """Zeroes x [B, H, W, C] outside `valid_hw` [B, 2]; identity for None."""
    if valid_hw is None:
        return x
    return jnp.where(valid_mask(valid_hw, x.shape[1], x.shape[2]), x, 0)


def replicate_edge(x: Array, valid_hw: Array | None) -> Array:
    """Copies the last valid row and column of x [B, H, W, C] one cell outwards.

    Bilinear interpolation clamps at the edge of the reference's map: a single copied cell makes
    an interpolation over the padded map read the same values.
    """
    if valid_hw is None:
        return x
    for axis in (1, 2):
        index = jnp.arange(x.shape[axis])
        shape = [1, 1, 1, 1]
        shape[axis] = x.shape[axis]
        is_next = index.reshape(shape) == valid_hw[:, axis - 1].reshape(-1, 1, 1, 1)
        x = jnp.where(is_next, jnp.roll(x, 1, axis=axis), x)
    return x


def strided_size(valid_hw: Array | None, stride: int) -> Array | None:
    """Size after a "same"-padded convolution or pooling: ceil(size / stride)."""
    return None if valid_hw is None else (valid_hw + stride - 1) // stride


def parameter(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> Array:
    """Returns a parameter of a module, which is drawn if it is not there yet.

    `module.param` checks the shape of one that is there by tracing its initialiser, which takes a
    second for all of a model.

    Args:
        module: its owner.
        name: of the parameter.
        init: draws it from a key and the shape.
        shape: of it.

    Returns:
        The parameter, of that shape.

    Raises:
        flax.errors.ScopeParamShapeError: it has another shape.
        flax.errors.ScopeParamNotFoundError: it is neither there nor to be drawn.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape)
    value: Array = module.get_variable("params", name)
    if value.shape != shape:
        where = "/".join(module.path)
        raise flax.errors.ScopeParamShapeError(name, where, value.shape, shape)
    return value


@jax.custom_jvp
def rectify(x: Array) -> Array:
    """`nn.relu` of x of any shape; its gradient reads the result, so that x need not be kept."""
    return jnp.maximum(x, 0)


@rectify.defjvp
def _rectify_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = rectify(*primals)
    return y, jnp.where(y > 0, tangents[0], 0)


class Conv(nn.Module):
    """2-D convolution, zero padded by dilation * (kernel - 1) / 2 on each side unless given."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = msra_init
    bias_init: Initializer = nn.initializers.zeros_init()
    is_rectified: bool = False  # a ReLU follows
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array, valid_hw: Array | None = None) -> Array:
        """Convolves x [B, H, W, C_in], of which `valid_hw` counts, to [B, H', W', features]."""
        size = self.kernel_size
        inputs = x.shape[-1] // self.groups
        kernel = parameter(self, "kernel", self.kernel_init, (size, size, inputs, self.features))
        x = zero_invalid(x, valid_hw) if size > 1 else x
        bias = parameter(self, "bias", self.bias_init, (self.features,)) if self.use_bias else None
        return convolve(
            x,
            kernel,
            bias=bias,
            is_rectified=self.is_rectified,
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
            groups=self.groups,
            compute=self.compute,
        )


def convolve(
    x: Array,
    kernel: Array,
    *,
    bias: Array | None = None,
    is_rectified: bool = False,
    stride: int = 1,
    dilation: int = 1,
    padding: int | None = None,
    groups: int = 1,
    compute: Compute = PLAIN,
) -> Array:
    """Convolves x [B, H, W, C_in] with kernel [k, k, C_in / groups, C_out].

    Args:
        x: the map.
        kernel: square.
        bias: [C_out], added to every cell; None for none.
        is_rectified: whether a ReLU follows.
        stride: of both axes.
        dilation: of both axes.
        padding: zeros on each side; None for dilation * (k - 1) / 2.
        groups: into how many equal groups of channels input and output are divided; an output
            reads the inputs of its group.
        compute: how to compute; its dtype is that of the result.

    Returns:
        [B, H', W', C_out] with H' = floor((H + 2 padding - dilation (k - 1) - 1) / stride) + 1.

    Raises:
        ValueError: channels do not divide into the groups, or are others than the kernel's.
    """
    inputs, features = kernel.shape[2:]
    if x.shape[-1] != groups * inputs or features % groups:
        raise ValueError(
            f"{x.shape[-1]} channels in {groups} groups do not fit a kernel {kernel.shape}"
        )
    size = kernel.shape[0]
    same = dilation * (size - 1) // 2
    padding = same if padding is None else padding
    x, kernel = x.astype(compute.dtype), kernel.astype(compute.dtype)
    if (
        compute.winograd
        and (size, stride, padding, groups, x.dtype) == (3, 1, dilation, 1, jnp.float32)
        and dilation < max(x.shape[1:3])
        and winograd.is_worth_while(x.shape, kernel.shape[-1], dilation)
    ):
        return winograd.convolve_3x3(x, kernel, dilation, bias, is_rectified)
    x = _convolve_plainly(x, kernel, stride, dilation, padding, groups, compute)
    return add_bias(x, bias, is_rectified)


def _convolve_plainly(
    x: Array,
    kernel: Array,
    stride: int,
    dilation: int,
    padding: int,
    groups: int,
    compute: Compute,
) -> Array:
    """Convolves as `convolve` does, without Winograd's transform."""
    size = kernel.shape[0]
    if groups > 1 and compute.split_groups:
        # Not through Winograd's transform: there are too few channels for it to pay.
        return jnp.concatenate(
            [
                _convolve_plainly(x, k, stride, dilation, padding, 1, compute)
                for x, k in _split_groups(x, kernel, groups)
            ],
            axis=-1,
        )
    if groups > 1:
        return _convolve_directly(x, kernel, stride, dilation, padding, groups)
    if size == 3 and padding == dilation >= max(x.shape[1:3]):
        # Every tap but the centre reads the zero padding.
        kernel, size, padding = kernel[1:2, 1:2], 1, 0
    if size == 1 and padding == 0:
        # A matrix product: XLA's CPU convolution is slower at it.
        return matmul(x[:, ::stride, ::stride], kernel[0, 0], compute)
    if (
        compute.stem_blocks
        and (size, stride, padding, dilation) == (7, 2, 3, 1)
        and kernel.shape[2] <= _FEW_INPUTS
        and kernel.shape[3] <= _FEW_FEATURES
        and x.shape[1] % 2 == x.shape[2] % 2 == 0
    ):
        return _convolve_blocks(x, kernel)
    return _convolve_directly(x, kernel, stride, dilation, padding)


def _convolve_directly(
    x: Array, kernel: Array, stride: int, dilation: int, padding: int, groups: int = 1
) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _convolve_blocks(x: Array, kernel: Array) -> Array:
    """Convolves x [B, 2H, 2W, C] with kernel [7, 7, C, D] at stride 2: a 4 x 4 kernel on blocks.

    A convolution reads runs of channels: four times as long they take XLA half the time on CPUs,
    gradients included, where channels are few.
    """
    channels, features = kernel.shape[2:]
    # Output i reads rows 2i - 3 to 2i + 3: with a row of zeros before the kernel, blocks i - 2 to
    # i + 1.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return lax.conv_general_dilated(
        interpolate.space_to_depth(x),
        kernel.reshape(4, 4, 4 * channels, features),
        window_strides=(1, 1),
        padding=((2, 1), (2, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _split_groups(x: Array, kernel: Array, groups: int) -> list[tuple[Array, Array]]:
    """Splits a convolution of groups into ordinary ones: maps and kernels to convolve.

    XLA's convolution of groups on CPUs takes twice as long and more, its gradient a hundred times
    as long. Groups of few channels are joined, their kernels as blocks of one that is zero
    elsewhere, until products are large enough for the matrix units.
    """
    joined = math.gcd(groups, max(_CHANNELS_AT_ONCE // kernel.shape[2], 1))
    size, _, inputs, features = kernel.shape
    blocks = kernel.reshape(size, size, inputs, groups // joined, joined, features // groups)
    own = jnp.eye(joined, dtype=kernel.dtype)
    # A part's block of rows and columns is zero but where both are of the same group.
    blocks = jnp.einsum("hwipgo,fg->phwfigo", blocks, own)
    kernels = blocks.reshape(-1, size, size, joined * inputs, joined * features // groups)
    return list(zip(jnp.split(x, groups // joined, axis=-1), kernels, strict=True))


class FrozenBatchNorm(nn.Module):
    """Affine map with fixed statistics; nothing in it trains."""

    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Scales and shifts the channels of x [..., C]."""
        shape = (x.shape[-1],)
        # In the same collections as batch norm's, so that a checkpoint serves both.
        scale = lax.stop_gradient(parameter(self, "scale", self.scale_init, shape))
        bias = lax.stop_gradient(parameter(self, "bias", nn.initializers.zeros_init(), shape))
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
        var = self.variable("batch_stats", "var", jnp.ones, shape).value
        scale = scale * lax.rsqrt(var + self.epsilon)
        return x * per_channel(scale, x) + per_channel(bias - mean * scale, x)


class BatchNorm(nn.Module):
    """Batch norm with PyTorch's statistics: the running variance is the unbiased one."""

    momentum: float = 0.1  # share of the new batch, PyTorch's convention
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones_init()
    batch_axis: str = ""  # see `Compute`

    @nn.compact
    def __call__(self, x: Array, train: bool = False, valid_hw: Array | None = None) -> Array:
        """Normalises x [B, H, W, C] by the batch if `train`, else by the running statistics.

        The statistics of a batch are those of the cells within `valid_hw` [B, 2], or of all, of the
        images of all devices.
        """
        shape = (x.shape[-1],)
        scale = parameter(self, "scale", self.scale_init, shape)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        batches = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if train:
            mean, var, count = _batch_moments(x.astype(jnp.float32), valid_hw, self.batch_axis)
            if not self.is_initializing():
                unbiased = lax.stop_gradient(var) * (count / jnp.maximum(count - 1, 1))
                keep = 1 - self.momentum
                running_mean.value = keep * running_mean.value + self.momentum * lax.stop_gradient(
                    mean
                )
                running_var.value = keep * running_var.value + self.momentum * unbiased
                batches.value = batches.value + 1
        else:
            mean, var = running_mean.value, running_var.value
        scale = scale * lax.rsqrt(var + self.epsilon)
        return x * per_channel(scale, x) + per_channel(bias - mean * scale, x)


def _batch_moments(
    x: Array, valid_hw: Array | None, batch_axis: str
) -> tuple[Array, Array, Array | float]:
    """Mean and biased variance [C] of the valid cells of x [B, H, W, C], and their number."""

    def over_devices(value: Array | float) -> Array | float:
        summed: Array | float = lax.psum(value, batch_axis) if batch_axis else value
        return summed

    mask: Array | bool = True
    count = over_devices(float(x.size // x.shape[-1]))
    if valid_hw is not None:
        mask = valid_mask(valid_hw, x.shape[1], x.shape[2])
        count = over_devices(mask.sum().astype(jnp.float32))
    divisor = jnp.maximum(count, 1)
    mean = over_devices(jnp.where(mask, x, 0).sum((0, 1, 2))) / divisor
    distance = jnp.square(x - per_channel(mean, x))
    var = over_devices(jnp.where(mask, distance, 0).sum((0, 1, 2))) / divisor
    return mean, var, count


class GroupNorm(nn.Module):
    """Group norm over the valid part of a map, eps as PyTorch's."""

    num_groups: int = 32
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones_init()

    def __call__(self, x: Array, valid_hw: Array | None = None) -> Array:
        """Normalises x [B, H, W, C] a group of C / num_groups channels at a time.

        Raises:
            ValueError: C is no multiple of num_groups.
        """
        factor, shift = self.affine(x, valid_hw)
        return x * factor.astype(x.dtype) + shift.astype(x.dtype)

    @nn.compact
    def affine(self, x: Array, valid_hw: Array | None = None) -> tuple[Array, Array]:
        """Computes the factor and the shift [B, 1, 1, C], float32, that normalise x [B, H, W, C].

        Raises:
            ValueError: C is no multiple of num_groups.
        """
        batch, height, width, channels = x.shape
        if channels % self.num_groups:
            raise ValueError(f"{channels} channels do not divide into {self.num_groups} groups")
        scale = parameter(self, "scale", self.scale_init, (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (channels,))
        members = channels // self.num_groups
        x32 = x.astype(jnp.float32)
        count: Array | int = height * width
        mask = None
        if valid_hw is not None:
            count = valid_hw.prod(axis=-1).reshape(-1, 1).astype(jnp.float32)
            mask = valid_mask(valid_hw, height, width)

        def group_mean(values: Array) -> Array:
            """Mean over the valid cells and the members of each group: [B, 1, 1, C]."""
            values = values if mask is None else jnp.where(mask, values, 0)
            sums = values.sum((1, 2)).reshape(batch, self.num_groups, members).sum(-1)
            return jnp.repeat(sums / (count * members), members, axis=-1)[:, None, None, :]

        mean = group_mean(x32)
        var = group_mean(jnp.square(x32 - mean))
        factor = lax.rsqrt(var + self.epsilon) * scale[None, None, None]
        return factor, bias[None, None, None] - mean * factor


class ConvNorm(nn.Module):
    """Convolution followed by a norm ("", "FrozenBN", "BN" or "GN"); biased only without one."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    norm: str = ""
    use_bias: bool | None = None
    kernel_init: Initializer = msra_init
    scale_init: Initializer = nn.initializers.ones_init()  # of the norm
    is_rectified: bool = False  # a ReLU follows
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array, valid_hw: Array | None = None, train: bool = False) -> Array:
        """Maps x [B, H, W, C_in], of which `valid_hw` [B, 2] counts, to [B, H', W', features].

        Raises:
            ValueError: an unknown norm.
        """
        use_bias = not self.norm if self.use_bias is None else self.use_bias
        x = Conv(
            self.features,
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
            use_bias=use_bias,
            kernel_init=self.kernel_init,
            is_rectified=self.is_rectified and not self.norm,
            compute=self.compute,
            name="conv",
        )(x, valid_hw)
        if self.norm == "":
            return x
        x = self._normalise(x, valid_hw, train)
        return nn.relu(x) if self.is_rectified else x

    def _normalise(self, x: Array, valid_hw: Array | None, train: bool) -> Array:
        if self.norm == "FrozenBN":
            return FrozenBatchNorm(scale_init=self.scale_init, name="norm")(x)
        if self.norm == "BN":
            batch_norm = BatchNorm(
                scale_init=self.scale_init, batch_axis=self.compute.batch_axis, name="norm"
            )
            return batch_norm(x, train, strided_size(valid_hw, self.stride))
        if self.norm == "GN":
            group_norm = GroupNorm(scale_init=self.scale_init, name="norm")
            return group_norm(x, strided_size(valid_hw, self.stride))
        raise ValueError(f"unknown norm {self.norm!r}: one of '', 'FrozenBN', 'BN', 'GN'")
