"""Every public law of the algebra, by the property that proves it."""

from tests.algebra import cases_grid, cases_layers, cases_many, cases_one
from tests.algebra.checks import Property
from unbranch import algebra as A


def itself(m: object) -> object:
    """The law of a value: it computes what its formula says."""
    return m


PROPERTIES = {
    "a map computes its formula": Property(itself, cases_layers.formula()),
    "a map of many taps computes its formula": Property(itself, cases_layers.many_taps()),
    "identity changes nothing": Property(A.identity, cases_layers.identities()),
    "convolution is F.conv and F.linear": Property(A.convolution, cases_layers.convolutions()),
    "transposed_convolution is F.conv_transpose": Property(A.transposed_convolution, cases_layers.transposed()),
    "average_pool is F.avg_pool": Property(A.average_pool, cases_layers.pools()),
    "batch_norm_scale_shift is F.batch_norm": Property(A.batch_norm_scale_shift, cases_layers.batch_norms()),
    "scale_shift scales and shifts": Property(A.scale_shift, cases_one.scales()),
    "scale_shift takes a map's bias away": Property(A.scale_shift, cases_one.unbiasing_shifts()),
    "pad is F.pad with zeros or the map's bias": Property(A.pad, cases_one.pads_by_constant()),
    "pad is F.pad with a border after a pointwise map": Property(A.pad, cases_one.pads_by_border()),
    "pad by negative amounts crops": Property(A.pad, cases_one.crops()),
    "pad is exact or refuses": Property(A.pad, cases_one.any_pads(), refusable=True),
    "zero_stuff puts zeros between": Property(A.zero_stuff, cases_one.upsamplings()),
    "zero_stuff is exact or refuses": Property(A.zero_stuff, cases_one.any_upsamplings(), refusable=True),
    "as_pointwise applies a matrix at every point": Property(A.as_pointwise, cases_one.lifts()),
    "select slices channels": Property(A.select, cases_one.selections()),
    "select keeps groups": Property(A.select, cases_one.group_selections()),
    "with_groups is the same map": Property(A.with_groups, cases_one.densifications()),
    "add sums outputs": Property(A.add, cases_many.sums()),
    "add is exact or refuses": Property(A.add, cases_many.any_sums(), refusable=True),
    "concat is torch.cat": Property(A.concat, cases_many.concats()),
    "concat is exact or refuses": Property(A.concat, cases_many.any_concats(), refusable=True),
    "compose is one map after the other": Property(A.compose, cases_many.compositions()),
    "compose coarsens groups to their gcd": Property(A.compose, cases_many.interleaved_groups()),
    "compose is exact or refuses": Property(A.compose, cases_many.any_compositions(), refusable=True),
    "a grid map computes its formula": Property(itself, cases_grid.grid_formula()),
    "to_grid is the convolution": Property(A.to_grid, cases_grid.matrices_of_convolutions()),
    "add sums outputs of grid maps": Property(A.add, cases_grid.grid_sums()),
    "add takes convolutions to the grid of a grid map": Property(A.add, cases_grid.mixed_sums()),
    "add coarsens groups of grid maps to their gcd": Property(A.add, cases_grid.grid_sums_of_other_groups()),
    "add of grid maps is exact or refuses": Property(A.add, cases_grid.any_grid_sums(), refusable=True),
    "concat is torch.cat of grid maps": Property(A.concat, cases_grid.grid_concats()),
    "compose is one grid map after the other": Property(A.compose, cases_grid.grid_compositions()),
    "compose is a convolution after a grid map": Property(A.compose, cases_grid.mixed_compositions()),
    "compose of grid maps is exact or refuses": Property(A.compose, cases_grid.any_grid_compositions(), refusable=True),
    "reshape is Tensor.reshape": Property(A.reshape, cases_grid.reshapes()),
    "scale_shift scales and shifts grid maps": Property(A.scale_shift, cases_grid.grid_scales()),
    "select slices channels of grid maps": Property(A.select, cases_grid.grid_selections()),
}
