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
    "upsampled puts zeros between": Property(A.upsampled, cases_one.upsamplings()),
    "upsampled is exact or refuses": Property(A.upsampled, cases_one.any_upsamplings(), refusable=True),
    "lifted applies a matrix at every point": Property(A.lifted, cases_one.lifts()),
    "select slices channels": Property(A.select, cases_one.selections()),
    "select keeps groups": Property(A.select, cases_one.group_selections()),
    "densified is the same map": Property(A.densified, cases_one.densifications()),
    "add sums outputs": Property(A.add, cases_many.sums()),
    "add is exact or refuses": Property(A.add, cases_many.any_sums(), refusable=True),
    "concat is torch.cat": Property(A.concat, cases_many.concats()),
    "concat is exact or refuses": Property(A.concat, cases_many.any_concats(), refusable=True),
    "split slices outputs": Property(A.split, cases_many.splits()),
    "block_diagonal is maps side by side": Property(A.block_diagonal, cases_many.side_by_side()),
    "block_diagonal is exact or refuses": Property(A.block_diagonal, cases_many.any_side_by_side(), refusable=True),
    "compose is one map after the other": Property(A.compose, cases_many.compositions()),
    "compose coarsens groups to their gcd": Property(A.compose, cases_many.interleaved_groups()),
    "compose is exact or refuses": Property(A.compose, cases_many.any_compositions(), refusable=True),
    "a grid map computes its formula": Property(itself, cases_grid.grid_formula()),
    "to_grid is the convolution": Property(A.to_grid, cases_grid.matrices_of_convolutions()),
    "grid_add sums outputs": Property(A.grid_add, cases_grid.grid_sums()),
    "grid_add coarsens groups to their gcd": Property(A.grid_add, cases_grid.grid_sums_of_other_groups()),
    "grid_add is exact or refuses": Property(A.grid_add, cases_grid.any_grid_sums(), refusable=True),
    "grid_compose is one map after the other": Property(A.grid_compose, cases_grid.grid_compositions()),
    "grid_compose is exact or refuses": Property(A.grid_compose, cases_grid.any_grid_compositions(), refusable=True),
    "regridded is a reshape": Property(A.regridded, cases_grid.regriddings()),
    "grid_scale_shift scales and shifts": Property(A.grid_scale_shift, cases_grid.grid_scales()),
    "grid_select slices channels": Property(A.grid_select, cases_grid.grid_selections()),
}
