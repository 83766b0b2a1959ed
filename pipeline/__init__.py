"""Everything around the method: Ray, storage, configuration, stages, and what people see."""
