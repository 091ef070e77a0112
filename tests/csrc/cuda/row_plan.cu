// How rows are laid over a device: its limits, then vocabularies, as arguments; one line of the plan for each.
#include <cstdio>
#include <cstdlib>

#include "row_plan.h"

int main(int count, char **arguments) {
    const device::Limits limits = {atoi(arguments[1]), atoi(arguments[2]), atoi(arguments[3]), atoi(arguments[4])};
    for (int i = 5; i < count; ++i) {
        const RowPlan plan = plan_row(atoi(arguments[i]), limits);
        printf("%d %d %d %d\n", plan.is_resident, plan.cluster, plan.slice, plan.shared_bytes);
    }
}
