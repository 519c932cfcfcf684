export const Tools = () => null;
