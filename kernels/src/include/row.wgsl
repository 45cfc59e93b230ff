    // A workgroup's row, shared by its invocations; with LANE every invocation has one of its own.
    {% if LANE %}
    let row = flat_index(wid, groups, lid);
    let START = 0u;
    let STEP = 1u;
    {% else %}
    let row = wid.x + wid.y * groups.x;
    let START = lid;
    let STEP = {{ WG }}u;
    {% endif %}
    if (row >= p.rows) {
        return;
    }
